#!/usr/bin/env bash
# A LoRA of a SimpleGVR on one card of 24 GB: a folder of video -> pairs -> LoRA -> a folder for a hub.
#
#   runs/lora_24gb.sh VIDEOS DIT UPSAMPLER OUT LICENSE [SETTINGS]
#
# VIDEOS: folder of video in the look that is wanted; DIT, UPSAMPLER: the trained SimpleGVR; OUT: folder of all results; LICENSE: license of
# the LoRA, as the hub abbreviates it. SETTINGS: file of bash that changes what follows. A run that was killed is resumed by the same
# command; what is finished is not done again.
set -euo pipefail
videos=$(realpath "$1") dit=$(realpath "$2") upsampler=$(realpath "$3") out=$(realpath -m "$4") license=$5
vae=wan_2.1_vae.safetensors
run=(python3 scripts/run.py)
pairs=(--recipe classical --num-frames 17)
# 17 frames of 1056 x 1920 pixels, one at once, eight in a step; the weights in bfloat16. docs/training.md tables other cards.
train=(--crop.num-frames 17 --crop.size 132 240 --crop.batch 1 --loop.accumulate 8 --loop.steps 2000 --loop.learning-rate 1e-4)
lora=(--lora-rank 32 --frozen bfloat16 --gradient-checkpointing)
name=gvr_lora
[ $# -lt 6 ] || source "$6"
cd "$(dirname "$0")/.."

[ -e "$out/pairs/pairs.json" ] || "${run[@]}" pairs --videos "$videos" --vae "$vae" --out "$out/pairs" "${pairs[@]}"
options=(--preset stage3 --curve None --pairs "$out/pairs" --init-dit "$dit" --init-upsampler "$upsampler" --out "$out/lora" "${lora[@]}" "${train[@]}")
"${run[@]}" train "${options[@]}" --plan | tail -n 1 >"$out/plan.json"
[ -e "$out/lora/lora.safetensors" ] || "${run[@]}" train "${options[@]}"
"${run[@]}" export --dit "$dit" --upsampler "$upsampler" --lora "$out/lora/lora.safetensors" --name "$name" --out "$out/hub" --license "$license"
echo "the LoRA is in $out/hub"
