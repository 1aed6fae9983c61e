"""Entry point of ``decdpo`` and ``python -m decdpo``."""

import sys

from decdpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
