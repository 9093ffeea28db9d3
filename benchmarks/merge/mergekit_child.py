"""One merge by mergekit in this process: `PYTHON mergekit_child.py RECIPE OUT`, PYTHON that of its environment.

Prints {"seconds", "peak_rss_mb"}, seconds without imports. It is started as a file, so that `memory` beside it is found
and nothing else of this project.
"""

import json
import sys
import time
from pathlib import Path

import yaml
from memory import resident_mb  # type: ignore[import-not-found]  # beside this file
from mergekit.config import MergeConfiguration  # type: ignore[import-not-found]
from mergekit.merge import run_merge  # type: ignore[import-not-found]
from mergekit.options import MergeOptions  # type: ignore[import-not-found]

if __name__ == "__main__":
    recipe, out = Path(sys.argv[1]), sys.argv[2]
    start = time.perf_counter()
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
    run_merge(config, out, options=MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True))
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_rss_mb": resident_mb("VmHWM")}))
