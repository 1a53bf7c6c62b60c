"""`python -m sftpipe` is `sftpipe`."""

import sys

from sftpipe.cli import main

if __name__ == "__main__":  # a fork server of multiprocessing imports it under another name
    sys.exit(main())
