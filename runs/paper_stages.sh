#!/usr/bin/env bash
# The paper's training, whole: a folder of video -> captions -> pairs -> stages 1, 2, 3 -> distillation -> evaluation -> two folders for a hub.
#
#   runs/paper_stages.sh VIDEOS CLIPS OUT LICENSE [SETTINGS]
#
# VIDEOS: folder of video to train on, a caption beside each (VIDEO.txt); CLIPS: folder of other video to measure on; OUT: folder of all
# results; LICENSE: license of the weights, as the hub abbreviates it. SETTINGS: file of bash that changes what follows. A run that was
# killed is resumed by the same command; what is finished is not done again.
set -euo pipefail
videos=$(realpath "$1") clips=$(realpath "$2") out=$(realpath -m "$3") license=$4
vae=wan_2.1_vae.safetensors
t2v=wan2.1_t2v_1.3B_fp16.safetensors
text_encoder=Wan-AI/Wan2.1-T2V-1.3B-Diffusers
negative="blurred, overexposed, static, subtitles, low quality, compression artifacts, deformed"
run=(python3 scripts/run.py)
launch=("${run[@]}")                    # of training; on 8 GPUs: docs/training.md
captions=()                             # options of contexts, such as --captioner
short=(--num-frames 17)    # clips of stages 1 and 2
long=(--num-frames 77)     # clips of stage 3
pairs=() curve=() train=() stage1=() stage2=() stage3=() distil=() evaluate=()  # more options of these commands
name=gvr_wan21_1.3b base_model=Wan-AI/Wan2.1-T2V-1.3B
[ $# -lt 5 ] || source "$5"
cd "$(dirname "$0")/.."

[ -e "$out/captions/contexts.json" ] || "${run[@]}" contexts --videos "$videos" --out "$out/captions" \
    --text-encoder "$text_encoder" --negative "$negative" "${captions[@]}"

build() { # NAME RECIPE OPTIONS...
    [ -e "$out/pairs/$1/pairs.json" ] || "${run[@]}" pairs --videos "$videos" --vae "$vae" --out "$out/pairs/$1" --recipe "$2" "${@:3}" "${pairs[@]}"
}
guided=(--t2v "$t2v" --contexts "$out/captions" --negative "$out/captions/negative.safetensors")
build classical classical "${short[@]}"
build aigc aigc "${guided[@]}" "${short[@]}"
build classical_77 classical "${long[@]}"
build aigc_77 aigc "${guided[@]}" "${long[@]}"

stage() { # NAME FROM_DIT OPTIONS...
    [ -e "$out/$1/upsampler.safetensors" ] || "${launch[@]}" train --preset "$1" --out "$out/$1" --contexts "$out/captions" --init-dit "$2" "${@:3}" "${train[@]}"
}
of() { # NAME OPTION: the files that a stage starts from
    echo "$out/$1/$2.safetensors"
}
stage stage1 "$t2v" --pairs "$out/pairs/classical" "${stage1[@]}"
[ -e "$out/curve.json" ] || "${run[@]}" curve --pairs "$out/pairs/classical" --model "$(of stage1 dit)" --upsampler "$(of stage1 upsampler)" \
    --out "$out/curve.json" "${curve[@]}"
stage stage2 "$(of stage1 dit)" --init-upsampler "$(of stage1 upsampler)" --pairs "$out/pairs/aigc" --curve "$out/curve.json" "${stage2[@]}"
stage stage3 "$(of stage2 dit)" --init-upsampler "$(of stage2 upsampler)" --pairs "$out/pairs/classical_77" "$out/pairs/aigc_77" \
    --curve "$out/curve.json" "${stage3[@]}"
[ -e "$out/distil/dit.safetensors" ] || "${launch[@]}" distil --preset wan --out "$out/distil" --contexts "$out/captions" --pairs "$out/pairs/aigc" \
    --init-dit "$(of stage3 dit)" --init-upsampler "$(of stage3 upsampler)" "${distil[@]}"

for model in stage3 distil; do
    [ -e "$out/evaluated/$model/results.json" ] || "${run[@]}" evaluate --clips "$clips" --out "$out/evaluated/$model" --vae "$vae" \
        --model "$(of $model dit)" --upsampler "$(of stage3 upsampler)" --methods gvr latent_bilinear "${evaluate[@]}"
    suffix=${model/stage3/}
    "${run[@]}" export --dit "$(of $model dit)" --upsampler "$(of stage3 upsampler)" --name "$name${suffix:+_$suffix}" --out "$out/hub/$model" \
        --base-model "$base_model" --license "$license"
done
echo "$name is in $out/hub/stage3, in few steps in $out/hub/distil; $out/evaluated has both reports"
