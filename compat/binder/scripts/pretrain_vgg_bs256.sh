#!/bin/sh
# Pre-train vgg19 on any photographs: TRAIN_PATH=... VALID_PATH=... pretrain_vgg_bs256.sh
set -e
exec python "$(dirname "$0")/../src/main.py" train \
    --base vgg19 --loss hardest --chunks 8 --bs 256 --epochs 100 --lr 1e-1 \
    --filetype .jpg --synth_valid \
    --train_path "${TRAIN_PATH:?folder of training images}" \
    --valid_path "${VALID_PATH:?folder of validation images}" \
    --weights_path pretrain_vgg_bs256.pth "$@"
