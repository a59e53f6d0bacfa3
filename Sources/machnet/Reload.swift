import ArgumentParser
import CMachnetABI
import Glibc
import MachnetControl

struct Reload: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Has the daemon read the flows of its config again.",
    discussion: """
      A file with a mistake changes nothing, and the mistake is printed; what has changed outside of the flows waits for the \
      daemon's next start, and that is said, too. SIGHUP to machnetd does the same. Only for root, the daemon's own \
      user and the group that control.operators names in the config.

      Exit codes: 0 the new rules are in force; 1 the old rules stay, or no daemon answers; 64 the command line is wrong.
      """)

  @OptionGroup var daemon: DaemonOptions

  func run() throws {
    let client = try daemon.connect()
    let reply = try client.call(client.request(MN_REQUEST_RELOAD))
    switch reply.header.status {
    case 0:
      let note = try ControlClient.text(reply)
      if !note.isEmpty { complain("machnet: \(note)") }
      return
    case EPERM: complain("machnet: only root, the daemon's own user and the group that control.operators names may reload it: sudo machnet reload")
    default: complain("\(try ControlClient.text(reply))\nmachnet: nothing is reloaded; the old rules stay; correct the config and reload again")
    }
    throw ExitCode.failure
  }
}
