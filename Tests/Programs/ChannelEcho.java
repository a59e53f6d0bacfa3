import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.DatagramChannel;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.util.Arrays;

/** UDP echo with a non-blocking DatagramChannel and a Selector; used as blocking_echo.py. */
public class ChannelEcho {
  static byte[] payload(int number, int size) {
    byte[] bytes = new byte[size];
    for (int i = 0; i < size; i++) bytes[i] = (byte) (i < 4 ? number >> (24 - 8 * i) : (number + i - 4) % 251);
    return bytes;
  }

  static DatagramChannel open(Selector selector) throws Exception {
    DatagramChannel channel = DatagramChannel.open();
    channel.configureBlocking(false);
    channel.register(selector, SelectionKey.OP_READ);
    return channel;
  }

  public static void main(String[] args) throws Exception {
    InetSocketAddress server = new InetSocketAddress(InetAddress.getByName(args[1]), Integer.parseInt(args[2]));
    ByteBuffer buffer = ByteBuffer.allocateDirect(65535);
    Selector selector = Selector.open();
    DatagramChannel channel = open(selector);
    if (args[0].equals("server")) {
      channel.bind(server);
      while (true) {
        selector.select();
        selector.selectedKeys().clear();
        while (true) {
          buffer.clear();
          SocketAddress peer = channel.receive(buffer);
          if (peer == null) break;
          buffer.flip();
          channel.send(buffer, peer);
        }
      }
    }
    int count = Integer.parseInt(args[3]);
    int[] sizes = Arrays.stream(args[4].split(",")).mapToInt(Integer::parseInt).toArray();
    channel.connect(server);
    for (int number = 0; number < count; number++) {
      byte[] sent = payload(number, sizes[number % sizes.length]);
      boolean echoed = false;
      for (int attempt = 0; attempt < 10 && !echoed; attempt++) {
        channel.write(ByteBuffer.wrap(sent));
        while (!echoed && selector.select(1000) > 0) {
          selector.selectedKeys().clear();
          while (!echoed) {
            buffer.clear();
            if (channel.receive(buffer) == null) break;
            buffer.flip();
            byte[] got = new byte[buffer.remaining()];
            buffer.get(got);
            echoed = Arrays.equals(got, sent);
          }
        }
      }
      if (!echoed) {
        System.err.println("no echo of datagram " + number + ", " + sent.length + " bytes");
        System.exit(1);
      }
    }
    System.out.println("ok " + count);
  }
}
