"""``python -m processors_v2`` is ``stage-tracker``."""

import sys

from processors_v2._cli.entry import main

sys.exit(main())
