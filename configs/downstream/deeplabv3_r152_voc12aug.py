"""Table 5, segmentation: DeepLabv3 with ResNet-152, VOC2012 train + SBD (10,582) -> val (1,449).

    tools/dist_train.sh configs/downstream/deeplabv3_r152_voc12aug.py 8 \
        --cfg-options backbone_file=work_dirs/r152_sd/backbone.pth

Paper: mIoU 77.53 (BL), 77.97 (SD). Ours: not measured yet. Cost: not measured yet.
From the paper: 50 epochs, batch 8, learning rate 0.007 with poly decay of power 0.9. Our choices,
where the paper is silent: momentum and weight decay, crop 513, scales 0.5 to 2, output stride 16,
no auxiliary head, trained batch normalisation, synchronised over GPUs.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/downstream/deeplabv3.py',
    '../_base_/downstream/voc12aug.py',
]

paper = dict(BL=77.53, SD=77.97)
model = dict(backbone=dict(depth=152))
