#!/usr/bin/env bash
# Lip-sync one video to one sound.
# Variables, from the environment or these defaults; arguments are handed on to generate.py:
#   video_path=FILE  audio_path=FILE  out_path=FILE  model_path=CKPT
# video_path=me.mp4 audio_path=speech.wav bash scripts/inference_single_video.sh --face_detector dlib
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=$(bash "$root/scripts/setup.sh")

video_path=${video_path:-test_videos/video.mp4}
audio_path=${audio_path:-test_videos/audio.wav}
out_path=${out_path:-output_dir/result.mp4}
model_path=${model_path:-checkpoints/checkpoint.pt}

# the paper's 25 steps, unless the caller says how many; a --timestep_respacing of theirs comes later and counts
steps=(--timestep_respacing ddim25)
for argument in "$@"; do
  case $argument in --quality_preset | --quality_preset=* | --sampling_steps | --sampling_steps=* | turbo | --sampler=turbo)
    steps=() ;; esac
done
exec "$PYTHON" "$root/generate.py" \
  --video_path "$video_path" --audio_path "$audio_path" --out_path "$out_path" --model_path "$model_path" \
  --sampling_seed 7 --use_ddim True ${steps[@]+"${steps[@]}"} --sampling_batch_size 4 \
  --save_orig False --is_voxceleb2 False --pad_audio True "$@"
