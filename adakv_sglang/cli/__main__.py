"""`python -m adakv_sglang.cli`."""

import sys

from adakv_sglang.cli import main

if __name__ == "__main__":
    sys.exit(main())
