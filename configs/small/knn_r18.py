"""k-NN on frozen features of a ResNet-18 at 64 pixels, for any folder of classes; small.

tools/train.py configs/small/knn_r18.py --cfg-options backbone_file=work_dirs/r18_sd/backbone.pth
"""

_base_ = ['../_base_/runtime.py', '../_base_/downstream/knn.py']

data_root = 'data/tiny-imagenet-other-100'  # other classes than in pretraining
image_size = 64
loader = dict(num_workers=0)
model = dict(backbone=dict(depth=18))
