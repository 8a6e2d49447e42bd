"""./dev bench NAME [--quick] [--only PART,PART] [--json FILE]: the benchmarks, and the campaigns of proof/ as well."""

import sys

from benchmarks._shared.runner import BENCHMARKS, CAMPAIGNS, main

sys.exit(main(BENCHMARKS, CAMPAIGNS))
