"""DenseNet-100 on CIFAR-100, Snapshot Distillation with T = 3 (Table 3).

Command: tools/dist_train.sh configs/pretrain/cifar100/densenet100_sd_t3.py 1
"""

_base_ = ['../../_base_/runtime.py', '../../_base_/pretrain/cifar100_densenet.py']
algorithm = dict(name='SD T=3', generations=4, teacher_weight=1.0, temperature=3.0)
paper = dict(top1_error=[24.31, 23.19, 21.6, 21.17], best=21.17, ensemble=19.71)
