"""`python -m sftpipe` is `sftpipe`."""

import sys

from sftpipe.cli import main

sys.exit(main())
