#!/usr/bin/env bash
# Distillation at toy scale: a teacher of 50 steps, students of 1, 2 and 4 steps and solvers of 4 and 8, with three seeds.
#
#   runs/toy_distillation.sh FOOTAGE CLIPS OUT [TEACHER_STEPS STUDENT_STEPS]
#
# FOOTAGE: folder of video to train on; CLIPS: folder of other clips to measure on; OUT: folder of the runs and of table.md.
# A run that was killed is resumed by the same command; what is finished is not done again.
set -euo pipefail
footage=$(realpath "$1") clips=$(realpath "$2") out=$(realpath -m "$3") teacher=${4:-600} student=${5:-250}
cd "$(dirname "$0")/.."
run="python3 scripts/run.py"
vae=models/simplegvr_tiny_vae/gvr_tiny_vae.safetensors
metrics=(psnr st_lpips niqe warping_error lr_consistency)

[ -e "$out/pairs/pairs.json" ] || $run pairs --videos "$footage" --vae $vae --out "$out/pairs" \
    --recipe area --scales 2 --height 288 --num-frames 9 --spacing 24
data=(--pairs "$out/pairs" --vae $vae --crop.num-frames 5 --crop.size 16 16 --crop.batch 8 --loop.cpu --no-bf16 --loop.ema 0.99)

evaluate() { # NAME MODEL OPTIONS...
    [ -e "$out/$seed/evaluated/$1/results.json" ] || $run evaluate --clips "$clips" --out "$out/$seed/evaluated/$1" \
        --model "$2/dit.safetensors" --upsampler "$out/$seed/teacher/upsampler.safetensors" --seed "$seed" \
        --scale 2 --num-frames 9 --height 192 --metrics "${metrics[@]}" --methods gvr "${@:3}"
}
distil() { # NAME OPTIONS...
    [ -e "$out/$seed/$1/dit.safetensors" ] || $run distil --preset tiny --footage "${data[@]}" --out "$out/$seed/$1" \
        --init-dit "$out/$seed/teacher/dit.safetensors" --init-upsampler "$out/$seed/teacher/upsampler.safetensors" \
        --loop.seed "$seed" --loop.steps "$student" --sampling.strength 1 --sampling.patch-filter 0 "${@:2}"
}
for seed in 0 1 2; do
    [ -e "$out/$seed/teacher/dit.safetensors" ] || $run train --preset tiny_teacher --footage "${data[@]}" --out "$out/$seed/teacher" \
        --upsampler.blocks 0 --upsampler.resize latent_pixels --dit.dim 128 --dit.ffn-dim 256 --dit.num-heads 1 --dit.num-layers 3 \
        --sampling.steps 50 --sampling.denoise 0.4 --loop.seed "$seed" --loop.steps "$teacher" --loop.learning-rate 2e-3
    evaluate teacher "$out/$seed/teacher"
    distil student_1 --loop.learning-rate 1e-3 --perceptual-loss 0
    evaluate student_1 "$out/$seed/student_1"
    for steps in 2 4; do
        distil student_$steps --loop.learning-rate 2e-4 --perceptual-loss 0 --objective dmd2 \
            --sampling.steps $steps --sampling.start noise --sampling.shift 3
        evaluate student_$steps "$out/$seed/student_$steps"
    done
    for solver in euler ab2; do
        for steps in 4 8; do
            evaluate ${solver}_$steps "$out/$seed/teacher" --steps $steps --solver $solver
        done
    done
done
$run tools/toy_distillation_table.py "$out" | tee "$out/table.md"
