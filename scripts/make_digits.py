"""Make zoo/metanet_zoo/data/digits.npz, the images that ship with the package, from scikit-learn's copy."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "zoo" / "metanet_zoo" / "data" / "digits.npz"


def main() -> None:
    """Write the file."""
    digits = load_digits()
    np.savez_compressed(TARGET, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
