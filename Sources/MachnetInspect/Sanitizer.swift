import CElf

/// Whether a library is the runtime of a sanitizer. They insist on being the first in the initial list of libraries.
public func isSanitizerRuntime(_ path: String) -> Bool {
  let name = lastComponent(path)
  return ["libasan", "libtsan", "liblsan", "libubsan", "libmsan", "libhwasan", "libclang_rt."]
    .contains { name.hasPrefix($0) }
}

/// Paths of the sanitizer runtimes that a program is linked with. None for what is no ELF file.
public func sanitizerRuntimes(of program: String, environment: [String: String]) -> [String] {
  guard let executed = try? Executed(program, searchPath: environment["PATH"] ?? "/usr/local/bin:/usr/bin:/bin"),
    let file = try? ElfFile(path: executed.path)
  else { return [] }
  let names = file.names(MNELF_DT_NEEDED).filter(isSanitizerRuntime)
  if names.isEmpty { return [] }
  let loader = Loader(libraryPath: environment["LD_LIBRARY_PATH"])
  let path = loader.searchPath(of: file)
  return names.compactMap {
    loader.find($0, rpaths: path.rpath, runpath: path.runpath, machine: file.machine, bits: file.bits)?.path
  }
}

/// Whether the loader of a program can map a library: both are for the same machine and of the same class. True for what is
/// no ELF file, and for what is not there.
public func canMap(_ library: String, into program: String, environment: [String: String]) -> Bool {
  guard let executed = try? Executed(program, searchPath: environment["PATH"] ?? "/usr/local/bin:/usr/bin:/bin"),
    let file = try? ElfFile(path: executed.path), let mapped = try? ElfFile(path: library)
  else { return true }
  return file.machine == mapped.machine && file.bits == mapped.bits
}
