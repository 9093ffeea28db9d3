"""A worker process that sleeps, for the test that it ends with the process that started it."""

import multiprocessing
import os
import sys
import time

from merge.lifetime import die_with_parent


def sleep() -> None:
    die_with_parent()
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    time.sleep(600)


if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[1]).Process(target=sleep)
    worker.start()
    worker.join()
