#!/usr/bin/env bash
# Trains the bundled models: a teacher by flow matching, gvr_tiny, its one-step student, and the toy text-to-video model.
#
#   runs/gvr_tiny.sh FOOTAGE SCENES OUT [TEACHER_MINUTES STUDENT_MINUTES T2V_MINUTES]
#
# FOOTAGE: folder of 1080p video and photographs, as tools/gather_footage.sh makes it.
# SCENES: folder of pairs that the toy text-to-video model learns by heart.
# OUT: folder of the runs. A run that was killed is resumed by the same command.
# The default minutes are those of one H100. On a CPU give hours.
set -euo pipefail
cd "$(dirname "$0")/.."
footage=$1 scenes=$2 out=$3 teacher=${4:-2} student=${5:-4} t2v=${6:-1}
vae=models/simplegvr_tiny_vae/gvr_tiny_vae.safetensors
run="${PYTHON:-python3 scripts/run.py}"

$run train --preset tiny_teacher --footage "$footage" --vae $vae --out "$out/teacher" --loop.minutes "$teacher"
$run distil --preset tiny --footage "$footage" --vae $vae --out "$out/student" --loop.minutes "$student" \
    --init-dit "$out/teacher/dit.safetensors" --init-upsampler "$out/teacher/upsampler.safetensors"
$run train --preset tiny_t2v --pairs "$scenes" --vae $vae --out "$out/t2v" --loop.minutes "$t2v"
