"""Selects the photographs that gvr_tiny is trained on: `python3 scripts/run.py tools/select_photographs.py PACKAGES OUT`.

PACKAGES has a folder for each unpacked Debian package. The photographs are reduced to 3200 pixels and written as JPEG.
"""

import sys
from pathlib import Path

import cv2

LONGEST = 3200  # pixels
LEAST = 1000
WANTED = {  # package: patterns of its photographs
    "lomiri-wallpapers-16.04": ["**/*_by_*.jpg"],
    "lomiri-wallpapers-20.04": ["**/*_by_*.jpg"],
    "forensics-samples-files": ["**/original-files/pic*/IMG_*.jpg"],
    "libjxl-testdata": ["**/jxl/flower/flower.png"],
    "lxqt-themes": [
        f"**/{name}" for name in ("butterfly.png", "flowers.png", "drop.png", "cloud.png", "after-the-rain.jpg", "fog.jpg", "Valendas.png")
    ],
    "mate-backgrounds": ["**/nature/*.jpg"],
    "plasma-workspace-wallpapers": [
        f"**/{name}/contents/images/2560x1600.jpg"
        for name in ("BytheWater", "ColdRipple", "ColorfulCups", "EveningGlow", "FallenLeaf", "Grey", "OneStandsOut", "Path")
    ],
    "ukui-wallpapers": ["**/calla.png", "**/goldfish.png"],
}
HELD_OUT = {"TwoWings.jpg", "Painting-Colors_by__herobrine7gamer.jpg"}  # measured on; a painting


def main(packages: Path, out: Path) -> None:
    """Writes the photographs of packages to out."""
    for package, patterns in WANTED.items():
        paths = [path for pattern in patterns for path in sorted((packages / package).glob(pattern)) if path.name not in HELD_OUT]
        if not paths:
            sys.exit(f"{packages / package} has none of {', '.join(patterns)}")
        for path in paths:
            picture = cv2.imread(str(path))
            if picture is None or min(picture.shape[:2]) < LEAST:
                continue
            scale = min(1.0, LONGEST / max(picture.shape[:2]))
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
            name = path.parents[2].name if path.parent.name == "images" else path.stem  # Plasma names its files by their size
            full_color = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
            cv2.imwrite(str(out / f"{name}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90, *full_color])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
