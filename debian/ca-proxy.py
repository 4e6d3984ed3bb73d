#!/usr/bin/python3 -I
import sys

from igelcert.proxy.start import main

sys.exit(main())
