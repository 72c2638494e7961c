"""The C4 Faster R-CNN with ResNet-18, for small images and two CPU cores."""

_base_ = 'faster_rcnn_c4.py'

# BasicBlocks output a quarter of a Bottleneck's channels. Fewer and coarser regions reduce the
# cost of layer4.
model = dict(
    backbone=dict(depth=18),
    rpn_head=dict(in_channels=256, feat_channels=256, anchor_generator=dict(scales=[1, 2, 4, 8])),
    roi_head=dict(
        shared_head=dict(depth=18),
        bbox_roi_extractor=dict(out_channels=256, roi_layer=dict(output_size=6)),
        bbox_head=dict(in_channels=512, roi_feat_size=3),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=200), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=50)),
)
