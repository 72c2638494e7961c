"""PASCAL VOC2012 segmentation: trained on train and SBD, tested on val, mean IoU.

SBD adds the 9,118 images of ``aug.txt``, which makes 10,582. Random scaling, cropping and flipping
as in DeepLabv3, without mmseg's photometric distortion and its limit on the share of one class in a
crop, which are not in the paper. The test is on whole images at their own size. The border (255) is
ignored in training and testing.
"""

data_root = 'data/VOCdevkit'
batch_size = 8  # over all processes
paper = dict(metric='mIoU')
train_cfg = dict(type='MicroBatchTrainLoop', max_epochs=50, val_interval=50)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.007, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=50, convert_to_iter_based=True)
]
classes = None  # the names of your classes, in the order of their ids; None: VOC's 21
# Your own lists below data_root, which must then directly contain JPEGImages and SegmentationClass.
train_list = None
val_list = None
image_scale = (500, 500)  # the longer side of VOC's images is 500
scale_range = (0.5, 2.0)  # of the random factor that image_scale is multiplied by
crop_size = (513, 513)
_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', keep_ratio=True),
    dict(type='RandomCrop'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    num_workers=4,
    # DeepLabv3's image pooling branch cannot normalise a last batch of one image.
    drop_last=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='PascalVOCDataset',
                ann_file=f'VOC2012/ImageSets/Segmentation/{split}.txt',
                data_prefix=dict(img_path='VOC2012/JPEGImages', seg_map_path=f'VOC2012/{masks}'),
                pipeline=_train_pipeline,
            )
            for split, masks in (('train', 'SegmentationClass'), ('aug', 'SegmentationClassAug'))
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='PascalVOCDataset',
        ann_file='VOC2012/ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='VOC2012/JPEGImages', seg_map_path='VOC2012/SegmentationClass'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_evaluator = dict(
    type='IoUMetric',
    iou_metrics=['mIoU'],
    collect_device='gpu',  # collect results by communication, not through files
)
val_cfg = dict(type='ValLoop')
