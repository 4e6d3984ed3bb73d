"""The lab CA: a small real certification authority, so that the whole chain runs on one machine."""
