#define _GNU_SOURCE
#include "machnet_elf.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <gelf.h>
#include <libelf.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

_Static_assert(MNELF_ET_EXEC == ET_EXEC && MNELF_ET_DYN == ET_DYN, "types");
_Static_assert(MNELF_EM_386 == EM_386 && MNELF_EM_ARM == EM_ARM && MNELF_EM_X86_64 == EM_X86_64, "machines");
_Static_assert(MNELF_EM_AARCH64 == EM_AARCH64, "machines");
_Static_assert(MNELF_PT_LOAD == PT_LOAD && MNELF_PT_DYNAMIC == PT_DYNAMIC && MNELF_PT_INTERP == PT_INTERP, "segments");
_Static_assert(MNELF_PT_NOTE == PT_NOTE && MNELF_PF_X == PF_X, "segments");
_Static_assert(MNELF_SHT_SYMTAB == SHT_SYMTAB && MNELF_SHT_DYNSYM == SHT_DYNSYM, "sections");
_Static_assert(MNELF_DT_NEEDED == DT_NEEDED && MNELF_DT_HASH == DT_HASH && MNELF_DT_STRTAB == DT_STRTAB, "tags");
_Static_assert(MNELF_DT_SYMTAB == DT_SYMTAB && MNELF_DT_STRSZ == DT_STRSZ && MNELF_DT_SONAME == DT_SONAME, "tags");
_Static_assert(MNELF_DT_RPATH == DT_RPATH && MNELF_DT_RUNPATH == DT_RUNPATH, "tags");
_Static_assert(MNELF_DT_FLAGS_1 == DT_FLAGS_1 && MNELF_DF_1_PIE == DF_1_PIE, "tags");
_Static_assert(MNELF_DT_VERDEF == DT_VERDEF && MNELF_DT_VERDEFNUM == DT_VERDEFNUM, "tags");
_Static_assert(MNELF_DT_VERNEED == DT_VERNEED && MNELF_DT_VERNEEDNUM == DT_VERNEEDNUM, "tags");

static Elf *elf(struct mnelf *file) { return (Elf *)file; }

struct mnelf *mnelf_open(int fd, const char **error) {
  if (elf_version(EV_CURRENT) == EV_NONE) {
    *error = "libelf is too old";
    return NULL;
  }
  Elf *file = elf_begin(fd, ELF_C_READ, NULL);
  GElf_Ehdr header;
  if (!file) {
    *error = elf_errmsg(-1);
  } else if (elf_kind(file) != ELF_K_ELF) {
    *error = "not an ELF file";
  } else if (!gelf_getehdr(file, &header)) {
    *error = "its ELF header is cut short";
  } else {
    return (struct mnelf *)file;
  }
  elf_end(file);
  return NULL;
}

void mnelf_close(struct mnelf *file) { elf_end(elf(file)); }

bool mnelf_header(struct mnelf *file, struct mnelf_header *header) {
  GElf_Ehdr found;
  if (!gelf_getehdr(elf(file), &found)) return false;
  header->bits = found.e_ident[EI_CLASS] == ELFCLASS64 ? 64 : 32;
  header->little_endian = found.e_ident[EI_DATA] == ELFDATA2LSB;
  header->type = found.e_type;
  header->machine = found.e_machine;
  header->section_table = found.e_shoff;
  header->section_table_size = (uint64_t)found.e_shnum * found.e_shentsize;
  return true;
}

int64_t mnelf_segment_count(struct mnelf *file) {
  size_t count;
  return elf_getphdrnum(elf(file), &count) == 0 ? (int64_t)count : -1;
}

bool mnelf_segment(struct mnelf *file, size_t index, struct mnelf_segment *segment) {
  GElf_Phdr found;
  if (!gelf_getphdr(elf(file), (int)index, &found)) return false;
  segment->type = found.p_type;
  segment->flags = found.p_flags;
  segment->offset = found.p_offset;
  segment->address = found.p_vaddr;
  segment->size = found.p_filesz;
  return true;
}

int64_t mnelf_section_count(struct mnelf *file) {
  size_t count;
  return elf_getshdrnum(elf(file), &count) == 0 ? (int64_t)count : -1;
}

bool mnelf_section(struct mnelf *file, size_t index, struct mnelf_section *section) {
  size_t names;
  GElf_Shdr found;
  Elf_Scn *scn = elf_getscn(elf(file), index);
  if (!scn || !gelf_getshdr(scn, &found)) return false;
  section->name = elf_getshdrstrndx(elf(file), &names) == 0 ? elf_strptr(elf(file), names, found.sh_name) : NULL;
  section->type = found.sh_type;
  section->offset = found.sh_offset;
  section->size = found.sh_size;
  return true;
}

static Elf_Data *chunk(struct mnelf *file, uint64_t offset, size_t size, Elf_Type type) {
  if (offset > INT64_MAX || size == 0) return NULL;
  return elf_getdata_rawchunk(elf(file), (int64_t)offset, size, type);
}

const void *mnelf_bytes(struct mnelf *file, uint64_t offset, size_t size) {
  Elf_Data *data = chunk(file, offset, size, ELF_T_BYTE);
  return data && data->d_size == size ? data->d_buf : NULL;
}

const struct mnelf_data *mnelf_dynamic_table(struct mnelf *file, uint64_t offset, size_t size) {
  return (const struct mnelf_data *)chunk(file, offset, size, ELF_T_DYN);
}

const struct mnelf_data *mnelf_symbol_table(struct mnelf *file, uint64_t offset, size_t size) {
  return (const struct mnelf_data *)chunk(file, offset, size, ELF_T_SYM);
}

bool mnelf_dynamic(const struct mnelf_data *table, size_t index, int64_t *tag, uint64_t *value) {
  GElf_Dyn entry;
  if (index > INT32_MAX || !gelf_getdyn((Elf_Data *)table, (int)index, &entry)) return false;
  *tag = entry.d_tag;
  *value = entry.d_un.d_val;
  return true;
}

bool mnelf_symbol(const struct mnelf_data *table, size_t index, struct mnelf_symbol *symbol) {
  GElf_Sym entry;
  if (index > INT32_MAX || !gelf_getsym((Elf_Data *)table, (int)index, &entry)) return false;
  symbol->name = entry.st_name;
  symbol->defined = entry.st_shndx != SHN_UNDEF;
  symbol->local = GELF_ST_BIND(entry.st_info) == STB_LOCAL;
  return true;
}

int64_t mnelf_find(const void *bytes, size_t size, size_t from, const void *needle, size_t length) {
  if (from > size) return -1;
  const char *found = memmem((const char *)bytes + from, size - from, needle, length);
  return found ? found - (const char *)bytes : -1;
}

int mnelf_privileges(int fd, struct mnelf_privileges *privileges) {
  struct stat status;
  if (fstat(fd, &status) != 0) return -errno;
  privileges->is_regular = S_ISREG(status.st_mode);
  privileges->is_executable = (status.st_mode & 0111) != 0;
  privileges->setuid = status.st_mode & S_ISUID;
  privileges->setgid = (status.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP);
  privileges->capabilities = fgetxattr(fd, "security.capability", NULL, 0) > 0;
  privileges->uid = status.st_uid;
  privileges->gid = status.st_gid;
  privileges->size = (uint64_t)status.st_size;
  return 0;
}

int mnelf_open_path(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  return fd >= 0 ? fd : -errno;
}
