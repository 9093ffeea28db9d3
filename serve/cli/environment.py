"""Whether this installation can work at all."""

from importlib.metadata import PackageNotFoundError, distribution


def check_environment() -> None:
    """Refuse to run beside the distribution `kernels`, Hugging Face's, whose import package has the name of ours.

    Raises:
        ImportError: it is installed.
    """
    try:
        other = distribution("kernels")
    except PackageNotFoundError:
        return
    raise ImportError(
        f"the package `kernels` {other.version} from PyPI is installed beside overtone, whose own `kernels` it "
        "hides; run `pip uninstall kernels`, then install overtone again, or use separate environments"
    )
