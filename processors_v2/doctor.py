"""Whether an installation works, and what to do where it does not: what ``stage-tracker doctor`` prints.

::

    from processors_v2.doctor import examine

    for finding in examine(supabase.create_client(url, secret_key)):
        print(finding.level, finding.message, finding.remedy or "")
"""

from processors_v2._doctor.examination import examine
from processors_v2._doctor.findings import Finding, Level, is_green

__all__ = ["Finding", "Level", "examine", "is_green"]
