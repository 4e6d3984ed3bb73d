"""The proxy: knows the devices, holds the CA's credentials, checks each CSR, relays it."""
