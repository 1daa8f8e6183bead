"""Heads: small functional models on feature maps or pooled regions."""

from keras_seg.heads.box import box_head, box_predictor
from keras_seg.heads.keypoint import keypoint_head
from keras_seg.heads.mask import mask_head
from keras_seg.heads.rpn import rpn_head

__all__ = ["box_head", "box_predictor", "keypoint_head", "mask_head", "rpn_head"]
