"""k-NN on frozen features of a ResNet-50, for ImageNet or any class folders; not in the paper.

tools/train.py configs/downstream/knn_r50.py --cfg-options data_root=DIR backbone_file=FILE
"""

_base_ = ['../_base_/runtime.py', '../_base_/downstream/knn.py']

model = dict(backbone=dict(depth=50))
