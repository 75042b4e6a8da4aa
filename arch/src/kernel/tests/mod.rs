mod elf_images;
mod files;
mod fixtures;
mod packed;
