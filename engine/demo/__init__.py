"""What the demo page computes, without the page: images, edits of what stage 2 sees, proofs, examples."""
