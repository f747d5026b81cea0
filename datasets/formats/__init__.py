"""Reading file formats, every value checked: images, tables, COCO, XML, DICOM, MATLAB, run-length masks."""
