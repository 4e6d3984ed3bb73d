"""igelcert: device certificates from a company's PKI, through a proxy that holds the CA's credentials."""

__version__ = "0.1.0"
