"""Whether this is a run of continuous integration: nothing is skipped there, and Hypothesis searches the same in every run."""

import os

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
