import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.file.Path;
import static java.nio.file.StandardOpenOption.*;

public class Section {
    public static void main(String[] args) throws Exception {
        try (FileChannel channel = FileChannel.open(Path.of("/mnt/locks/ledger"), CREATE, WRITE);
             FileLock lock = channel.lock()) {
            System.out.println("only one node is here");
        }
    }
}
