#!/usr/bin/env bash
# Make the astronaut of samples/ say the sentence of samples/speech.wav: demo.mp4, and demo_side_by_side.mp4 beside it.
# out=FOLDER bash scripts/demo.sh --quality_preset balanced   (arguments are handed on to generate.py)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=$(bash "$root/scripts/setup.sh")
out=${out:-$PWD}
# the quickest that looks like 250 steps, by the quickest engine that is installed, unless the caller says otherwise
steps=(--quality_preset turbo)
engine=()
if ! command -v nvidia-smi >/dev/null && # OpenVINO is for the CPU
  "$PYTHON" -c 'import sys; from importlib.util import find_spec; sys.exit(find_spec("openvino") is None)'; then
  engine=(--engine openvino --device cpu)
fi
for argument in "$@"; do
  case $argument in --quality_preset* | --sampler* | --sampling_steps* | --timestep_respacing*) steps=() ;; esac
  case $argument in --engine* | --device* | --precision* | --compile*) engine=() ;; esac
done

"$PYTHON" "$root/generate.py" \
  --video_path "$root/samples/astronaut.mp4" --audio_path "$root/samples/speech.wav" --out_path "$out/demo.mp4" \
  --model_path "$root/checkpoints/demo.safetensors" --save_orig False \
  --is_voxceleb2 False --face_detector dlib --sampling_seed 7 ${steps[@]+"${steps[@]}"} ${engine[@]+"${engine[@]}"} \
  --sampling_batch_size 4 --blur_kernel_size 9 --pad_audio True "$@"
"$PYTHON" "$root/scripts/compare.py" "$out/demo.mp4" "$root/samples/astronaut.mp4" \
  --labels "lip-synced to samples/speech.wav" "source" --out "$out/demo_side_by_side.mp4"
echo "The result:      $out/demo.mp4"
echo "Beside its source: $out/demo_side_by_side.mp4"
