"""PASCAL VOC2012 segmentation: train and the images of SBD to train, val to evaluate, mean IoU.

SBD's are the 9,118 of ``aug.txt``, 10,582 with train's. Random scaling, cropping and flipping as
DeepLabv3; mmseg's photometric distortion and its limit on one class's share of a crop are not in
the paper. Whole images are evaluated, once and at their own size; the border (255) counts nowhere.
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
classes = None  # the names of other class ids than VOC's 21, in their order
# Lists of your own below data_root, which then holds JPEGImages and SegmentationClass itself.
train_list = None
val_list = None
image_scale = (500, 500)  # the longer side of VOC's images is 500
scale_range = (0.5, 2.0)  # of the random factor of image_scale
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
    # A last batch of one image has no variance for the pooled branch of DeepLabv3.
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
del _train_pipeline  # not a setting: it stands in both data sets
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
    collect_device='gpu',  # by messages, not through files
)
val_cfg = dict(type='ValLoop')
