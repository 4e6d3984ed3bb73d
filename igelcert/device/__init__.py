"""The device's programs: igel-certs and rmagent. Standard library and native core only."""
