"""The policy: a vision-language model that scores words. Knows no simulator."""

import logging

# Installed or not asked for, bitsandbytes warns: of kernels it could download, and at every call of
# an 8-bit layer of the dtype it casts to.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
