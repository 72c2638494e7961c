"""k-NN on the photos of VOC2007 that show one class, at 64 pixels as in pretraining; small.

tools/train.py configs/small/knn_r18_voc64.py \
    --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth
"""

_base_ = 'knn_r18.py'
data_root = 'data/voc07-one-class'
