"""./dev proof NAME [--quick] [--only PART,PART] [--json FILE]: the campaigns of this folder."""

import sys

from benchmarks._shared.runner import CAMPAIGNS, main

sys.exit(main(CAMPAIGNS))
