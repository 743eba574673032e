#!/usr/bin/env bash
# Trains the bundled gvr_tiny: a teacher by flow matching, its one-step student, and a fine-tuned upsampler.
#
#   runs/gvr_tiny.sh FOOTAGE OUT [TEACHER_MINUTES STUDENT_MINUTES UPSAMPLER_MINUTES]
#
# FOOTAGE: folder of 1080p video and photographs, as runs/gvr_tiny_footage.sh makes it.
# OUT: folder of the runs. A run that was killed is resumed by the same command.
# The default minutes are those of one H200 for the first two, of one CPU core for the last. On a CPU give hours.
set -euo pipefail
cd "$(dirname "$0")/.."
footage=$1 out=$2 teacher=${3:-0.8} student=${4:-4.7} upsampler=${5:-22}
run="python3 scripts/run.py"
data=(--footage "$footage" --vae models/simplegvr_tiny_vae/gvr_tiny_vae.safetensors)

$run train --preset tiny_teacher "${data[@]}" --out "$out/teacher" --loop.minutes "$teacher"
$run distil --preset tiny "${data[@]}" --out "$out/student" --loop.minutes "$student" \
    --init-dit "$out/teacher/dit.safetensors" --init-upsampler "$out/teacher/upsampler.safetensors"
$run train --preset tiny_teacher "${data[@]}" --out "$out/upsampler" --loop.minutes "$upsampler" \
    --init-dit "$out/teacher/dit.safetensors" --init-upsampler "$out/student/upsampler.safetensors" \
    --crop.batch 4 --loop.learning-rate 2e-4 --loop.warmup 5 --loop.ema 0.98 --loop.seed 1
echo "gvr_tiny is $out/student/dit.safetensors and $out/upsampler/upsampler.safetensors"
