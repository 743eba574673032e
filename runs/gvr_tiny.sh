#!/usr/bin/env bash
# Trains the bundled gvr_tiny: a teacher by flow matching, then its one-step student; the upsampler is trained along with both.
#
#   runs/gvr_tiny.sh FOOTAGE OUT [TEACHER_MINUTES STUDENT_MINUTES]
#
# FOOTAGE: folder of 1080p video and photographs, as runs/gvr_tiny_footage.sh makes it.
# OUT: folder of the runs. A run that was killed is resumed by the same command.
# The default minutes are those of one H200. On a CPU give hours.
set -euo pipefail
cd "$(dirname "$0")/.."
footage=$1 out=$2 teacher=${3:-0.8} student=${4:-10.7}
run="python3 scripts/run.py"
data=(--footage "$footage" --vae models/simplegvr_tiny_vae/gvr_tiny_vae.safetensors)

$run train --preset tiny_teacher "${data[@]}" --out "$out/teacher" --loop.minutes "$teacher"
$run distil --preset tiny "${data[@]}" --out "$out/student" --loop.minutes "$student" \
    --init-dit "$out/teacher/dit.safetensors" --init-upsampler "$out/teacher/upsampler.safetensors"
echo "gvr_tiny is $out/student/dit.safetensors and $out/student/upsampler.safetensors"
