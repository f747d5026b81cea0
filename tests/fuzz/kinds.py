"""Every kind of file that the project reads."""

from tests.fuzz import images, tables, tensors
from tests.fuzz.kind import Kind

KINDS = {
    "images": Kind(images.images, images.read_image_file),
    "arrays": Kind(images.arrays, images.read_array),
    "radiographs": Kind(images.radiographs, images.read_radiograph),
    "checkpoints": Kind(tensors.checkpoints, tensors.read_run),
    "weights": Kind(tensors.weights, tensors.read_weights),
    "published weights": Kind(tensors.published, tensors.read_published),
    "heat maps": Kind(tensors.maps, tensors.read_maps),
    "MATLAB arrays": Kind(tensors.matlab, tensors.read_matlab),
    "tube labels": Kind(tables.tubes, tables.read_tubes),
    "boxes": Kind(tables.boxes, tables.read_box_xml),
    "part annotations": Kind(tables.parts, tables.read_parts),
    "configs": Kind(tables.configs, tables.read_config),
}
