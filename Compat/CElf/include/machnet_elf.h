// libelf for Swift: thin, no policy. Every pointer that is handed out belongs to the file and dies with `mnelf_close`.
//
// A file is read with pread, never mapped: somebody may cut it while we look, and that is an error here, not SIGBUS.
#ifndef MACHNET_ELF_H
#define MACHNET_ELF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/// An open ELF file; libelf's `Elf`.
struct mnelf;
/// Bytes of the file in the machine's own form; libelf's `Elf_Data`.
struct mnelf_data;

/// The file behind `fd`, which stays the caller's and open. NULL, with *error set, for what is no ELF object file.
struct mnelf *mnelf_open(int fd, const char **error);
void mnelf_close(struct mnelf *file);

struct mnelf_header {
  uint8_t bits; /* 32 or 64 */
  bool little_endian;
  uint16_t type, machine; /* ET_*, EM_* */
  uint64_t section_table;      /* offset in the file; 0: none */
  uint64_t section_table_size; /* bytes */
};
bool mnelf_header(struct mnelf *file, struct mnelf_header *header);

struct mnelf_segment {
  uint32_t type, flags; /* PT_*, PF_* */
  uint64_t offset, address, size; /* in the file, in memory, bytes of the file */
};
/// -1: the table cannot be read.
int64_t mnelf_segment_count(struct mnelf *file);
bool mnelf_segment(struct mnelf *file, size_t index, struct mnelf_segment *segment);

struct mnelf_section {
  const char *name; /* NULL: none that can be read */
  uint32_t type;    /* SHT_* */
  uint64_t offset, size;
};
/// -1: the table cannot be read. Index 0 is the reserved entry.
int64_t mnelf_section_count(struct mnelf *file);
bool mnelf_section(struct mnelf *file, size_t index, struct mnelf_section *section);

/// `size` bytes at `offset`, as they are; NULL when they are not all there.
const void *mnelf_bytes(struct mnelf *file, uint64_t offset, size_t size);

/// The same bytes as a table of dynamic entries or symbols.
const struct mnelf_data *mnelf_dynamic_table(struct mnelf *file, uint64_t offset, size_t size);
const struct mnelf_data *mnelf_symbol_table(struct mnelf *file, uint64_t offset, size_t size);

/// False past the end.
bool mnelf_dynamic(const struct mnelf_data *table, size_t index, int64_t *tag, uint64_t *value);

struct mnelf_symbol {
  uint32_t name; /* offset in the string table */
  bool defined;
  bool local; /* nobody else can bind to it */
};
bool mnelf_symbol(const struct mnelf_data *table, size_t index, struct mnelf_symbol *symbol);

/// Where `needle` first lies in `size` bytes from `from` on; -1: nowhere.
int64_t mnelf_find(const void *bytes, size_t size, size_t from, const void *needle, size_t length);

enum {
  MNELF_ET_EXEC = 2, MNELF_ET_DYN = 3,
  MNELF_EM_386 = 3, MNELF_EM_ARM = 40, MNELF_EM_X86_64 = 62, MNELF_EM_AARCH64 = 183,
  MNELF_PT_LOAD = 1, MNELF_PT_DYNAMIC = 2, MNELF_PT_INTERP = 3, MNELF_PT_NOTE = 4,
  MNELF_PF_X = 1,
  MNELF_SHT_SYMTAB = 2, MNELF_SHT_DYNSYM = 11,
  MNELF_DT_NEEDED = 1, MNELF_DT_HASH = 4, MNELF_DT_STRTAB = 5, MNELF_DT_SYMTAB = 6, MNELF_DT_STRSZ = 10,
  MNELF_DT_SONAME = 14, MNELF_DT_RPATH = 15, MNELF_DT_RUNPATH = 29,
  MNELF_DT_FLAGS_1 = 0x6ffffffb, MNELF_DF_1_PIE = 0x08000000,
  MNELF_DT_VERDEF = 0x6ffffffc, MNELF_DT_VERDEFNUM = 0x6ffffffd,
  MNELF_DT_VERNEED = 0x6ffffffe, MNELF_DT_VERNEEDNUM = 0x6fffffff,
};

/// What a file's mode and attributes give whoever executes it.
struct mnelf_privileges {
  bool is_regular, is_executable; /* executable: for the caller */
  bool setuid, setgid, capabilities; /* capabilities: the attribute security.capability is there */
  uint32_t uid, gid;
  uint64_t size;
};
/// 0 or a negated errno value.
int mnelf_privileges(int fd, struct mnelf_privileges *privileges);

/// A descriptor for reading, close-on-exec, which never waits for the other end of a FIFO; or a negated errno value.
int mnelf_open_path(const char *path);

#endif
