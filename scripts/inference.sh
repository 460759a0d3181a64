#!/usr/bin/env bash
# Lip-sync every line "audio_name video_name" of a list, on one or more processes (GPUs).
# Variables, from the environment or these defaults; arguments are handed on to generate.py:
#   real_video_root=DIR  filelist=FILE  model_path=CKPT  sample_path=DIR  sample_mode=cross|reconstruction  NUM_GPUS=1
# bash scripts/inference.sh --face_detector dlib
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=$(bash "$root/scripts/setup.sh")

real_video_root=${real_video_root:-test_videos}
filelist=${filelist:-test_filelist.txt}
model_path=${model_path:-checkpoints/checkpoint.pt}
sample_path=${sample_path:-output_dir}
sample_mode=${sample_mode:-cross}
NUM_GPUS=${NUM_GPUS:-1}

case $sample_mode in
  cross) mode=(--sampling_input_type gt --sampling_ref_type gt) ;;
  reconstruction) mode=(--sampling_input_type first_frame --sampling_ref_type first_frame) ;;
  *) echo "inference.sh: error: sample_mode=$sample_mode: choose from cross, reconstruction" >&2; exit 2 ;;
esac
if [[ $NUM_GPUS =~ ^[1-9][0-9]*$ ]]; then :; else
  echo "inference.sh: error: NUM_GPUS=$NUM_GPUS: give a whole number from 1 up" >&2; exit 2
fi
if [ "$NUM_GPUS" -gt 1 ]; then
  # a share of the cores for each; torchrun would give each one thread
  cores=$(getconf _NPROCESSORS_ONLN)
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores + NUM_GPUS - 1) / NUM_GPUS))}
  # several machines: TORCHRUN_ARGS="--nnodes 2 --node_rank 0 --rdzv_backend c10d --rdzv_endpoint HOST:PORT"
  read -ra torchrun_args <<<"${TORCHRUN_ARGS:---standalone}"
  launch=("$PYTHON" -m torch.distributed.run "${torchrun_args[@]}" --nproc_per_node "$NUM_GPUS")
else
  launch=("$PYTHON")
fi
# the paper's 25 steps, unless the caller says how many; a --timestep_respacing of theirs comes later and counts
steps=(--timestep_respacing ddim25)
for argument in "$@"; do
  case $argument in --quality_preset | --quality_preset=* | --sampling_steps | --sampling_steps=* | turbo | --sampler=turbo)
    steps=() ;; esac
done
exec "${launch[@]}" "$root/generate.py" \
  --generate_from_filelist True --test_video_dir "$real_video_root" --filelist "$filelist" \
  --model_path "$model_path" --sample_path "$sample_path" "${mode[@]}" \
  --sampling_seed 7 --use_ddim True ${steps[@]+"${steps[@]}"} --sampling_batch_size 4 \
  --save_orig False --is_voxceleb2 False "$@"
