-- StatInode. ARGV[1] inode number.
return info(ARGV[1])
