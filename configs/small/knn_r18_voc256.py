"""k-NN on the photos of VOC2007 that show one class, at 256 pixels as in detection; small.

tools/train.py configs/small/knn_r18_voc256.py \
    --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth
"""

_base_ = 'knn_r18_voc64.py'
image_size = 256
