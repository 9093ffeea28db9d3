"""One merge by mergekit in this process: `PYTHON mergekit_child.py RECIPE OUT`, PYTHON that of its environment.

Prints {"seconds", "processor_seconds", "peak_rss_mb"}, seconds without imports. LoRAs are merged into their base in a
directory beside OUT first, which is part of the merge. It is started as a file, so that `memory` beside it is found and
nothing else of this project.
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
    start, spent = time.perf_counter(), time.process_time()
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, lora_merge_cache=f"{out}-loras")
    run_merge(config, out, options=options)
    result = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - spent}
    print(json.dumps({**result, "peak_rss_mb": resident_mb("VmHWM")}))
