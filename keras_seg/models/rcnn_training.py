"""What a Mask R-CNN is trained with: the batch, the samples that its losses look at, and the losses.

A batch is a dictionary of tensors. B images, padded at the bottom and at the right to H x W, G objects an image at most:

    "image"    uint8 or float [B, H, W, 3], RGB, 0-255; sides as the model takes them
    "size"     float32 [B, 2], true height and width
    "boxes"    float32 [B, G, 4], x1, y1, x2, y2 in pixels of "image"
    "classes"  int32 [B, G], 0 … K - 1; -1 where there is no object
    "crowd"    bool [B, G], optional: objects that stand for many, which nothing is trained on (as in Detectron2)

of a model with masks, bitmaps, or polygons, or both (an object that has both has their union):

    "mask_pixels"       uint8 [B, L], the objects' bitmaps, 0 or 1, one after the other, row by row
    "mask_windows"      int32 [B, G, 5], of each object: where its bitmap starts in "mask_pixels" of its image; y, x, height
                        and width of the window of the image that it covers, in whole pixels; zeros: no bitmap. Outside
                        the window there is nothing of the object, so its tightest window says all that the full bitmap
                        says, and 400 nuclei take as many bytes as they have pixels in their windows
    "polygon_points"    float64 [B, V, 2], x and y in pixels of "image", all polygons of an image one after the other
    "polygon_lengths"   int32 [B, Q], points of each polygon; 0 after an image's last
    "polygon_objects"   int32 [B, Q], the object of each polygon, 0 … G - 1; -1 after an image's last

of a model with keypoints:

    "keypoints"  float32 [B, G, K, 3]: x, y in continuous pixels of "image" (the centre of pixel i is i + 0.5), visibility
                 (0: not annotated)

Other entries ("image_id", say) are left alone. Crowds and places without an object need no mask nor keypoints.

The names of the losses: "loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_mask", "loss_keypoint", and
"loss", their sum.
"""
