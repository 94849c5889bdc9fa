#!/bin/sh
# Fine-tune the pre-trained vgg19: TRAIN_PATH=... VALID_PATH=... finetune_vgg_bs256.sh
set -e
cp pretrain_vgg_bs256.pth finetune_vgg_bs256.pth
exec python "$(dirname "$0")/../src/main.py" train \
    --base vgg19 --loss hardest --chunks 8 --bs 256 --epochs 100 --lr 1e-1 \
    --filetype .tif --resume \
    --train_path "${TRAIN_PATH:?folder of training images}" \
    --valid_path "${VALID_PATH:?folder of validation images}" \
    --weights_path finetune_vgg_bs256.pth "$@"
