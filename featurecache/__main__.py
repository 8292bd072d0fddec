"""``python -m featurecache``."""

import sys

from featurecache.cli import main

sys.exit(main())
